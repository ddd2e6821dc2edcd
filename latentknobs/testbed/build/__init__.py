"""How the packaged LM was made: sample stories, compose the corpus, train the tokenizer and the model."""
