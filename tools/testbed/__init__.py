"""How the packaged LM was made (stories, corpus, tokenizer, training), and how it is measured."""
