"""The command `semisup`, and `python -m semisup` where scripts are not on the PATH."""

__all__ = ["main"]


def main() -> None:
    """Run the command line; Ctrl-C while it is still being imported ends it without a word."""
    try:
        from semisup.cli.app import main as run

        run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        # A signal that broke off an exec of text, as dataclasses do it while libraries are imported, would end the
        # process by SIGINT whatever it answers; the next exec clears that.
        exec("")  # noqa: S102  # nosec B102


if __name__ == "__main__":
    main()
