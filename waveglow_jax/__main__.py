from typing import NoReturn

from waveglow_jax.interrupts import program


def main() -> NoReturn:
    """Runs the program, for `python -m waveglow_jax` and for the script of that name alike."""
    program(_run)


def _run() -> int:
    from waveglow_jax.cli import main as run  # takes a while, and can be interrupted

    return run()


if __name__ == "__main__":
    main()
