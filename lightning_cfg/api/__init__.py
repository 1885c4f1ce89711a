"""What `import lightning_cfg as lc` has as functions, beside its folders; see docs/python.md."""
