"""``python -m guided_backprop`` is the command line."""

from guided_backprop.commands.main import main

if __name__ == "__main__":
    main()
