"""Bad inputs of five kinds, a table each: data, checkpoints, YAML, arguments, environments."""
