"""What is known of a weight file."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Asset:
    """One file: its name here, its file name, and what is known of it.

    size     bytes, None where not known with certainty
    sha256   hex, None where not known: then that of the first download is recorded beside the file
    told     of a network that `adopt` reads: the keys of it that its weights do not say
    A zip is code: it is unpacked beside, into the folder of its name without ".zip".
    """

    name: str
    file: str
    url: str
    size: int | None
    sha256: str | None
    needed_by: str
    licence: str
    told: dict | None = None

    @property
    def is_code(self) -> bool:
        return self.file.endswith(".zip")

    @property
    def is_network(self) -> bool:
        """A network of somebody's, for `adopt`; the others are what feature extractors need."""
        return self.told is not None
