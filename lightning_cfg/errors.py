"""What a user is told in one line instead of a traceback."""


class UserError(Exception):
    """A mistake of the user's: one line that names the thing and what would be right (exit 2)."""


class Diverged(Exception):
    """Too many steps not finite: the run stops, its last good checkpoint stays (exit 1)."""


class Preempted(Exception):
    """A signal asked the run to end; it is saved and goes on when started again (exit 75)."""


class RankLost(Exception):
    """Another process of the run has ended or cannot be reached (exit 1)."""
