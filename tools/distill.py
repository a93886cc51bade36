"""Distil a SAR to EO model: accelerate launch tools/distill.py --config RECIPE"""

from c_diffset.commands import train_as_told

if __name__ == "__main__":
    train_as_told("distill")
