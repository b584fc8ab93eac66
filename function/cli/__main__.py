"""`python -m function.cli` is `comfyfn`."""

from function.cli import main

main()
