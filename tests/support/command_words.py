"""Words of a command line, put together from what most calls of a test say and what one says otherwise."""


def changed_call(usual, otherwise):
    """The words of both; of an option that comes again, with its values, the last: a command takes each once."""
    groups = []
    for word in map(str, (*usual, *otherwise)):
        if word.startswith("--"):
            groups.append([word])
        else:
            groups[-1].append(word)
    return [word for group in {group[0]: group for group in groups}.values() for word in group]
