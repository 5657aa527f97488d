"""fedsim, Flower, pfl-research and BlazeFL on the same work: ``python -m benchmarks.peers --data FOLDER``.

=================  ===================================================================================
``__main__``       the command: sides in turn, table, JSON lines
``cases``          what is compared: the configs of W1 and W2, the sizes of W3
``work``           the work itself, as files that the peers read, and their plain client loop
``files``          the small files between the command and its sides
``venvs``          a virtual environment for each peer, with its exact version
``sides``          one run of one side, as a command in separate processes, and its outcome
``flower_side``    that command for Flower, in Flower's environment
``pfl_side``       that command for pfl-research, in its environment
``blazefl_side``   that command for BlazeFL, in its environment
=================  ===================================================================================

Not among them (November 2026): APPFL and FL-bench. APPFL 1.12.0 cannot be installed beside fedsim's transformers, as its
globus-compute-endpoint asks for versions of its own; its Ray mode keeps a process for each registered client, 100 of them here,
and its simulator of virtual time trains clients one after another in one process. FL-bench is not on the package index.
"""
