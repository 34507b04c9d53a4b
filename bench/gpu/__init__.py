"""``make gpu``: checks, tuning and benchmarks on a machine with a GPU, in five minutes.

It runs in place and needs torch, triton and einops: no network, no installation, no environment.

======== ======= =====================================================================================
seconds  quick   stage
======== ======= =====================================================================================
12       12      machine      what the machine is; the start of Python and PyTorch is in it
45       12      tests        the part of the test suite that runs on the GPU
70       32      checks       each operation against float64 PyTorch on the CPU, in one process a core
20       10      compile      one call of everything that is timed later, in one process a core
25       4       tune         the standard problems of the autotuner, every operation in turn
36       14      update       optimizer steps: PyTorch's, ours at ranks 1 to 64, and other libraries'
12       6       host         the time that an eager call takes to issue
18       6       linear       training steps of linear layers
24       8       recurrence   training steps of RNNs, against cuDNN and the published loop
18       6       convolution  forward and backward of convolutions and of ResNet9, against cuDNN
8        5       training     steps a second of ``projunn train copying --length 1000``
10       5       profile      kernels by name, with their times
======== ======= =====================================================================================

Every stage runs in processes of its own and is stopped when its seconds are up; what it had written
stays, and the summary says what it did not come to.  A process that meets a CUDA error, or a capture
that fails, is replaced before the next case.  With ``SANITIZE=1`` the small checks run under
compute-sanitizer too, for up to 180 seconds more.

``PEERS=folder`` names wheels of POGO, geoopt and geotorch, ``PUBLISHED=folder`` the published projUNN
code; what is not there is reported as missing.  ``--dry`` runs one case of each kind at a tiny size on a
CPU, in Triton's interpreter, with a few of the kernels: whether all of this works.

One folder gets all that is to be kept, at most eight files of at most 16 MiB:

``summary.txt``     one page, which is also the last thing printed
``checks.jsonl``    tests and checks, one a line
``rows.jsonl``      what was timed, tuned and profiled, the targets (`bench.gpu.targets`) and the stages
``profile.txt``     kernels by name
``log.txt``         what every stage printed, and the table of all targets
``<gpu>.json``      the tuned table, for the tables that ship; beside it what else the library cached
``gpu_checks.json`` when each check last passed on which GPU, for ``bench/results/``: the next run starts
                    with what was never checked
"""
