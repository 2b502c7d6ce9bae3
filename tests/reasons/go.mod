module ottoscaler.io/reasons

go 1.25
