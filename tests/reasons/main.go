// Command reasons lists the reasons that Kubernetes can give for the state of a pod or
// of its containers, from the sources of the components that write them:
//
//	reasons <folder of k8s.io/kubernetes> <folder of k8s.io/api> <folder of k8s.io/cri-api>
//
// It prints one line per reason: the reason, what carries it, and the file that writes it.
// It reads syntax only. A reason that it cannot resolve to a text is an error, so that a
// new way to write one is noticed; those that are known are in [dynamic].
package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// What writes states of pods.
var writers = []string{
	"pkg/kubelet",
	"pkg/controller/devicetainteviction",
	"pkg/controller/disruption",
	"pkg/controller/nodelifecycle",
	"pkg/controller/podgc",
	"pkg/controller/tainteviction",
	"pkg/controller/util/node",
	"pkg/registry/core/pod",
	"pkg/scheduler",
}

// What a container runtime makes of an end. No source of Kubernetes names these:
// containerd (internal/cri/store/container, internal/cri/server), CRI-O (server), cri-dockerd.
var runtimes = []string{
	"Completed", "ContainerCannotRun", "Error", "OOMKilled", "StartError", "Unknown", "seccomp killed",
}

// Reasons that are no constants where they are written, by file and expression, and what
// they come to; nothing where they pass on one that is found elsewhere.
var dynamic = map[string][]string{
	// Any resource: OutOfnvidia.com/gpu. Beside it one that it has a constant for.
	"pkg/kubelet/lifecycle/predicate.go reason": {"OutOf*", "UnexpectedPredicateFailureType"},
	// The scheduler's filters, found in its AdmissionCheck.
	"pkg/kubelet/lifecycle/predicate.go r.Name": nil,
	// The errors of a start, found where they are made.
	"pkg/kubelet/kubelet_pods.go reason.Err.Error()": nil,
	// One of the scheduler's two, which its API names.
	"pkg/scheduler/schedule_one.go reason": {"SchedulerError", "Unschedulable"},
	// The handlers' results.
	"pkg/kubelet/cm/admission/errors.go admissionErr.Type()": nil,
	"pkg/kubelet/kubelet.go reason":                          nil,
	"pkg/kubelet/kubelet.go result.Reason":                   nil,
	"pkg/kubelet/kubelet_pods.go result.Reason":              nil,
	// The runtime's, or one that the kubelet wrote before.
	"pkg/kubelet/kubelet_pods.go cs.Reason":                          nil,
	"pkg/kubelet/kubelet_pods.go reason":                             {"ContainerStatusUnknown", "RestartingAllContainers"},
	"pkg/kubelet/kuberuntime/kuberuntime_container.go status.Reason": nil,
	"pkg/kubelet/kubelet_pods.go oldPodStatus.Reason":                nil,
	"pkg/kubelet/kubelet_pods.go pod.Status.Reason":                  nil,
	"pkg/kubelet/status/status_manager.go oldPodStatus.Reason":       nil,
}

var word = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.*/ -]*$`)

type reader struct {
	root   string
	set    *token.FileSet
	consts map[string]map[string]string // by package, then name
	found  map[string]map[string]bool   // by reason, then "carrier file"
	bad    []string
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: reasons <k8s.io/kubernetes> <k8s.io/api> <k8s.io/cri-api>")
		os.Exit(64)
	}
	r := &reader{root: os.Args[1], set: token.NewFileSet(), consts: map[string]map[string]string{}, found: map[string]map[string]bool{}}
	files := map[string]*ast.File{}
	for _, dir := range writers {
		r.parse(filepath.Join(r.root, dir), files)
	}
	for _, dir := range []string{filepath.Join(os.Args[2], "core/v1"), filepath.Join(r.root, "pkg/util/node"), filepath.Join(os.Args[3], "pkg/errors")} {
		r.parse(dir, map[string]*ast.File{})
	}
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		r.read(name, files[name])
	}
	// Also what only the image service's errors name.
	for name, text := range r.consts["errors"] {
		if strings.HasPrefix(name, "Err") {
			r.add(text, "waiting", "k8s.io/cri-api/pkg/errors")
		}
	}
	for _, reason := range runtimes {
		r.add(reason, "terminated", "container runtime")
	}
	// How the kubelet words an eviction for a limit of the pod's own.
	for name, text := range r.consts["eviction"] {
		if strings.HasSuffix(name, "MessageFmt") && strings.Contains(text, "limit") {
			r.add(strings.TrimSpace(text), "own limit", "pkg/kubelet/eviction/helpers.go")
		}
	}
	if len(r.bad) > 0 {
		slices.Sort(r.bad)
		fmt.Fprintf(os.Stderr, "reasons that are no constants; say in `dynamic` what they come to:\n%s\n", strings.Join(slices.Compact(r.bad), "\n"))
		os.Exit(1)
	}
	all := make([]string, 0, len(r.found))
	for reason := range r.found {
		all = append(all, reason)
	}
	slices.Sort(all)
	for _, reason := range all {
		var from []string
		for one := range r.found[reason] {
			from = append(from, one)
		}
		slices.Sort(from)
		fmt.Printf("%s\t%s\n", reason, from[0])
	}
}

func (r *reader) parse(dir string, files map[string]*ast.File) {
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		if entry.IsDir() {
			if name == "testing" || name == "testdata" || name == "metrics" {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") || strings.HasPrefix(name, "fake") {
			return nil
		}
		file, err := parser.ParseFile(r.set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		r.constants(file)
		short, err := filepath.Rel(r.root, path)
		if err != nil {
			return err
		}
		files[short] = file
		return nil
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// Constants, and errors that are made of a text.
func (r *reader) constants(file *ast.File) {
	pkg := file.Name.Name
	if r.consts[pkg] == nil {
		r.consts[pkg] = map[string]string{}
	}
	for _, decl := range file.Decls {
		decl, ok := decl.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, spec := range decl.Specs {
			spec, ok := spec.(*ast.ValueSpec)
			if !ok {
				continue
			}
			for n, value := range spec.Values {
				if call, ok := value.(*ast.CallExpr); ok && text(call.Fun) == "errors.New" {
					value = call.Args[0]
				}
				if selector, ok := value.(*ast.SelectorExpr); ok && decl.Tok == token.CONST {
					r.consts[pkg][spec.Names[n].Name] = alias + text(selector)
				}
				if literal, ok := value.(*ast.BasicLit); ok && literal.Kind == token.STRING {
					said, err := strconv.Unquote(literal.Value)
					if err == nil {
						r.consts[pkg][spec.Names[n].Name] = said
					}
				}
			}
		}
	}
}

// Stands before the name of another package's constant.
const alias = "\x00"

func (r *reader) constant(pkg, name string) (string, bool) {
	said, ok := r.consts[pkg][name]
	if other, is := strings.CutPrefix(said, alias); is {
		pkg, name, _ := strings.Cut(other, ".")
		said, ok = r.consts[pkg][name]
	}
	return said, ok
}

func (r *reader) add(reason, carrier, file string) {
	if reason == "" {
		return
	}
	if r.found[reason] == nil {
		r.found[reason] = map[string]bool{}
	}
	r.found[reason][carrier+"\t"+file] = true
}

func (r *reader) read(name string, file *ast.File) {
	imports := map[string]string{}
	for _, one := range file.Imports {
		path, _ := strconv.Unquote(one.Path.Value)
		pkg := filepath.Base(path)
		if one.Name != nil {
			imports[one.Name.Name] = pkg
		} else {
			imports[pkg] = pkg
		}
	}
	pkg := file.Name.Name
	resolve := func(expr ast.Expr, carrier string) {
		switch expr := expr.(type) {
		case *ast.BasicLit:
			if said, err := strconv.Unquote(expr.Value); err == nil {
				r.add(said, carrier, name)
				return
			}
		case *ast.Ident:
			if said, ok := r.constant(pkg, expr.Name); ok {
				r.add(said, carrier, name)
				return
			}
		case *ast.SelectorExpr:
			of := text(expr.X)
			if said, ok := r.constant(imports[of], expr.Sel.Name); ok {
				r.add(said, carrier, name)
				return
			}
		}
		key := name + " " + text(expr)
		known, ok := dynamic[key]
		if !ok {
			r.bad = append(r.bad, key)
		}
		for _, reason := range known {
			r.add(reason, carrier, name)
		}
	}
	// Errors of the kubelet that become the reason of a container that waits.
	starts := strings.HasPrefix(name, "pkg/kubelet/images/") || strings.HasPrefix(name, "pkg/kubelet/kuberuntime/") || strings.HasPrefix(name, "pkg/kubelet/container/")
	ast.Inspect(file, func(node ast.Node) bool {
		switch node := node.(type) {
		case *ast.ValueSpec:
			for n, value := range node.Values {
				call, ok := value.(*ast.CallExpr)
				if !ok || !starts || text(call.Fun) != "errors.New" || !strings.HasPrefix(node.Names[n].Name, "Err") {
					continue
				}
				said := r.consts[pkg][node.Names[n].Name]
				if !strings.Contains(said, " ") && word.MatchString(said) {
					r.add(said, "waiting", name)
				}
			}
		case *ast.CompositeLit:
			carrier := ""
			kind := text(node.Type)
			kind = kind[strings.LastIndex(kind, ".")+1:]
			switch kind {
			case "PodAdmitResult", "ShouldEvictResponse", "PredicateFailureError", "AdmissionResult":
				carrier = "pod"
			case "ContainerStateWaiting":
				carrier = "waiting"
			case "ContainerStateTerminated":
				carrier = "terminated"
			case "PodCondition":
				carrier = conditionOf(node)
			}
			if carrier == "" {
				return true
			}
			for n, element := range node.Elts {
				pair, ok := element.(*ast.KeyValueExpr)
				switch {
				case !ok && kind == "ShouldEvictResponse" && n == 1, !ok && kind == "PredicateFailureError" && n == 0:
					resolve(element, carrier)
				case !ok:
				case text(pair.Key) == "PredicateName", kind == "AdmissionResult" && text(pair.Key) == "Name":
					resolve(pair.Value, carrier)
				case text(pair.Key) == "Reason" && kind != "AdmissionResult":
					resolve(pair.Value, carrier)
				}
			}
		case *ast.CallExpr:
			fun := text(node.Fun)
			if strings.HasSuffix(fun, ".rejectPod") && len(node.Args) == 4 {
				resolve(node.Args[2], "pod")
			}
		case *ast.FuncDecl:
			// Errors of the kubelet's resource managers say by Type() how they refuse a pod.
			if node.Name.Name == "Type" && node.Recv != nil && strings.HasPrefix(name, "pkg/kubelet/cm/") && node.Body != nil {
				for _, statement := range node.Body.List {
					if result, ok := statement.(*ast.ReturnStmt); ok && len(result.Results) == 1 {
						resolve(result.Results[0], "pod")
					}
				}
			}
		case *ast.AssignStmt:
			for n, left := range node.Lhs {
				selector, ok := left.(*ast.SelectorExpr)
				if !ok || selector.Sel.Name != "Reason" || n >= len(node.Rhs) {
					continue
				}
				switch text(selector.X) {
				case "s", "status", "cStatus", "pod.Status", "newPodStatus", "podStatus", "apiPodStatus":
					resolve(node.Rhs[n], "pod")
				}
			}
		}
		return true
	})
}

// The carrier of the conditions that say why a pod ends, or is not scheduled.
func conditionOf(condition *ast.CompositeLit) string {
	for _, element := range condition.Elts {
		pair, ok := element.(*ast.KeyValueExpr)
		if !ok || text(pair.Key) != "Type" {
			continue
		}
		switch text(pair.Value) {
		case "v1.DisruptionTarget", "api.DisruptionTarget":
			return "DisruptionTarget"
		case "v1.PodScheduled", "api.PodScheduled":
			return "PodScheduled"
		}
	}
	return ""
}

func text(node ast.Node) string {
	switch node := node.(type) {
	case nil:
		return ""
	case *ast.Ident:
		return node.Name
	case *ast.SelectorExpr:
		return text(node.X) + "." + node.Sel.Name
	case *ast.CallExpr:
		return text(node.Fun) + "()"
	case *ast.StarExpr:
		return text(node.X)
	case *ast.UnaryExpr:
		return text(node.X)
	case *ast.BasicLit:
		return node.Value
	default:
		return fmt.Sprintf("%T", node)
	}
}
