"""What a task reports: pure functions of predictions and gold, in plain values.

Arguments come as (predicted, gold) in one order of rows. A result is a dict that JSON can
hold; a number that the rows leave undefined is absent, and `undefined` {name: why} says so.
Scales are those of the implementation that a number equals: 0 to 1 (scikit-learn, seqeval,
rouge-score) or 0 to 100 (SQuAD, sacrebleu). `DIRECTIONS` of a module says whether more ("max")
or less ("min") is better.
"""
