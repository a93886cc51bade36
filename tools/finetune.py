"""Fine-tune a SAR to EO model: accelerate launch tools/finetune.py --config train_configs/NAME.yaml"""

from c_diffset.training.finetune import main

if __name__ == "__main__":
    main()
