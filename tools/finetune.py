"""Fine-tune a SAR to EO model: accelerate launch tools/finetune.py --config RECIPE"""

from c_diffset.commands import run_tool

if __name__ == "__main__":
    run_tool("finetune")
