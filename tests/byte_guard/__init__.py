"""The byte guard: the hashes of the prompts that some thirty small runs end with, whatever is moved inside of fedsim.

``cases.py`` is the table of runs, ``coverage.py`` says what they have to cover, ``work.py`` does them in one process,
``machine.py`` starts that process so that the CPU has no say, ``table.json`` is what was recorded, and
``python -m tests.byte_guard`` compares or remakes it.
"""
