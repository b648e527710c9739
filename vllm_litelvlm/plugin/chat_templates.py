"""Which chat templates prompts may have gone through: the model's own, and those seen in use.

``vllm serve --chat-template FILE`` reaches neither the model's configuration nor the multimodal
processor; it is seen where vLLM resolves it (:mod:`vllm_litelvlm.plugin.compat`).
"""

_MOST = 8
_seen: dict[str, None] = {}


def note_template(template: str | None) -> None:
    """Remember a template that was applied, newest last; the oldest goes when there are many."""
    if template is not None and template not in _seen:
        _seen[template] = None
        while len(_seen) > _MOST:
            _seen.pop(next(iter(_seen)))


def templates_in_use() -> tuple[str, ...]:
    """The templates that were applied in this process, newest first."""
    return tuple(reversed(_seen))
