"""Fine-tune a tiny decoder: accelerate launch tools/finetune_decoder.py --config decoder

The run folder's `pipeline/` (the averaged weights) and `best/` (the best on validation) hold an `AutoencoderTiny`,
which `c-diffset translate` and `c-diffset evaluate` use in place of the model's own: `--vae RUN/pipeline`.
"""

from c_diffset.commands import run_tool

if __name__ == "__main__":
    run_tool("finetune_decoder")
