import os

# Before torch is imported, here and in processes that tests start: tensors are small, and threads that wait for each
# other on a busy machine can take longer than all the work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
