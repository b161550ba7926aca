"""`python -m benchmark` is `bench`; for launchers that want a module, such as torchrun."""

from benchmark.cli.app import main

if __name__ == "__main__":
    main()
