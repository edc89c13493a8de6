"""`python -m surgeon`, and the command `surgeon`: ready for signals before the rest is imported."""

from surgeon.cli.process import ending, prepare


def main() -> None:
    """Run the command line; exits the process."""
    prepare()
    with ending(is_last=True):
        from surgeon.cli.commands import main as run

        run()


if __name__ == "__main__":
    main()
