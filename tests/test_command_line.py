import subprocess
import sys

# MMDetection's mAP of VOC closes its pools only, so that they are terminated when they are collected.
POOL = """
from multiprocessing import get_context
from mmyolo_ema.command_line import run

def main():
    for _ in range(100):
        pool = get_context('fork').Pool(4)
        pool.map(abs, [1])
        pool.close()

run(main)
"""


def test_worker_processes_of_a_tool_can_be_terminated():
    subprocess.run([sys.executable, '-c', POOL], check=True, timeout=120)
