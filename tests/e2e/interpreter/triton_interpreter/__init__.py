"""Lets vLLM's second model runner start on a CPU, by Triton's own interpreter.

PyPI's Triton has no CPU backend, so vLLM takes it for absent there, and its second model runner
with it. This one is found by its entry point (beside this folder), compiles nothing, and is never
asked to: with ``TRITON_INTERPRET=1`` kernels run in Python. Only processes with this folder's
parent in ``PYTHONPATH`` see it, since without the interpreter vLLM would not work with it.
"""
