from qpeft.cli.app import main

main()
