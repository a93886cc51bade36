"""Distil a SAR to EO model: accelerate launch tools/distill.py --config train_configs/NAME.yaml"""

from c_diffset.training.distill import main

if __name__ == "__main__":
    main()
