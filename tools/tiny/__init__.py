"""Makes the embedded model of ``assets/tiny``: architecture, tokenizer and first lessons."""
