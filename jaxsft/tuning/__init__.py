"""What is trained: functions over parameter trees, no layers."""
