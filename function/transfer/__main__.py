"""`python -m function.transfer`: started by `client.FetcherProcess`."""

from function.transfer.process import main

if __name__ == "__main__":
    main()
