package broker

import _ "embed"

// ExampleConfiguration is a complete configuration file with comments.
//
//go:embed example.yaml
var ExampleConfiguration string
