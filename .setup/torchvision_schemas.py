"""Let a CUDA build of torchvision be imported beside a CPU build of torch.

The set-up script copies this file into the virtual environment, and only where torchvision
fails to import; a .pth file there imports it when Python starts. Nothing heavy happens then: an
import hook waits for the first import of torchvision.

Why it is needed: PyPI's torchvision is compiled against CUDA torch. Beside a CPU torch its C++
library does not load, so no operator is registered, and ``import torchvision`` fails with
"operator torchvision::nms does not exist" because it attaches shape functions to ``nms`` and
``qnms``. The pure-Python transforms that vision-language models use need neither operator.
Declaring the two schemas is enough for the import; calling them still raises an error.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader

_libraries = []  # torch drops a library's definitions together with the object


class _SchemaDefiningLoader(SourceFileLoader):
    """Loads torchvision after declaring the operators that its import refers to."""

    def exec_module(self, module):
        if not _libraries:
            import torch

            library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                library.define(
                    f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
            _libraries.append(library)
        super().exec_module(module)


class _TorchvisionFinder:
    """Finds torchvision where it lies, and has it loaded by the loader above.

    The schemas wait for the load and not for the search, because libraries search for
    torchvision merely to learn whether it is installed.
    """

    @staticmethod
    def find_spec(name, path=None, target=None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _SchemaDefiningLoader(spec.loader.name, spec.loader.path)
        return spec


sys.meta_path.insert(0, _TorchvisionFinder)
