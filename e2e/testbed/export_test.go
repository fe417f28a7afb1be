package testbed

// NodeTraces is what a real node in a directory is known by on the machine: its
// interface and its control group.
func NodeTraces(directory string) (networkInterface, group string) {
	t := Testbed{options: Options{Directory: directory}}
	return t.nodeInterface(), t.nodeCgroup()
}
