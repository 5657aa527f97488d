"""What a GPU does with fedsim's work, part by part: ``python -m benchmarks.gpu_report``.

==============  ======================================================================================
``__main__``    the command
``parts``       the parts, in order of their worth, and the cells of each
``running``     cells one after another within a budget of time; cells that are on file are skipped
``figures``     what is measured, and the file that holds it
``table``       ratios, shares of the peak and aims, from the figures of the file
``peaks``       what the GPU can do: its data sheet, and a large product
``shapes``      random models of the right shape
``training``    the work: clients that train one by one, in shared passes, and in a loop of PEFT
``timing``      seconds and memory of a side, on a GPU as on a CPU
``speed``       cells that compare sides of local training
``parity``      cells that compare a GPU with a CPU
``commands``    cells that are commands of their own: the tests marked for a GPU, and runs on Ray
==============  ======================================================================================
"""
