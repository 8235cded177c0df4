"""``python -m rdsrepl``."""

from rdsrepl.cli.main import run

if __name__ == "__main__":
    run()
