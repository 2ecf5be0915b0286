"""The first day on IPUs as one command.

    python -m backends.ipu_report --system c600 --ipus 1

A graded series (series.py): each step in a process of its own, so that one that hangs or dies ends the series and not
the report. The file it writes is what to send back (docs/ipu.md).
"""
