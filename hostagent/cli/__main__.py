"""python -m hostagent.cli: the same as hostagent."""

from hostagent.cli import main

main()
