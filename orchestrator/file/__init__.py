"""What `lorry.toml` may say and what is wrong with one: keys, places, words, and the datasets and bases that it names."""
