"""The command line: main.py chooses a verb, each verb is one file.

A verb's module has `add_arguments(parser)` and `run(arguments) -> Result`. It is imported only when its verb is chosen,
so `edgeface --help` stays instant; inside a verb, heavy imports still belong in `run`, so that its own --help does too.
"""
