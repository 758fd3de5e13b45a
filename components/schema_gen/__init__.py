"""SchemaGen: the schema of examples whose splits hold different features, inferred from all of them."""
