"""What a command reports when it cannot do its work; `main` prints it as it is and ends with 1."""


class Failure(Exception):
    """One plain sentence for whoever typed the command."""
