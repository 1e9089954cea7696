"""This process: its set-up, the activities it has seen, their spans, and the verbs that everything else reports by."""
