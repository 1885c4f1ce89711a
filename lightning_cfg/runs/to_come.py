"""What a run will hold, before it has run: by it a study tries all its stages before the first."""

from typing import Any

from lightning_cfg.errors import UserError


class ToCome(str):
    """In place of a path: the directory of a run that is still to come, or a file in it.

    files    {where it will lie: what a reader will get of it}: a checkpoint's dict of an untrained
             network, or tensors by name, of the shapes that there will be
    content  of one of them
    """

    files: dict[str, Any]
    content: Any = None

    def __new__(cls, text: str, files: dict[str, Any], content: Any = None) -> "ToCome":
        made = super().__new__(cls, text)
        made.files, made.content = files, content
        return made

    def inside(self, name: str) -> "ToCome":
        """One of its files; UserError if it will not have it. A file is itself."""
        if self.content is not None:
            return self
        if name not in self.files:
            raise UserError(f"{self} will hold no {name}")
        return ToCome(f"{self}/{name}", {}, self.files[name])
