"""Other trainers' configs -> a lorry.toml: `lorry import`. One file a trainer; the words that they share are in `nouns`."""
