"""fedsim, Flower and pfl-research on the same work: ``python -m benchmarks.peers --data FOLDER``.

=================  ===================================================================================
``__main__``       the command: sides in turn, table, JSON lines
``cases``          what is compared: the configs of W1 and W2, the sizes of W3
``work``           the work itself, as files that the peers read, and their plain client loop
``files``          the small files between the command and its sides
``venvs``          a virtual environment for each peer, with its exact version
``sides``          one run of one side, as a command in separate processes, and its outcome
``flower_side``    that command for Flower, in Flower's environment
``pfl_side``       that command for pfl-research, in its environment
=================  ===================================================================================
"""
