// Generates the Go code of .proto files without a protoc: it parses them and runs the two
// stock plugins, which are tools of this module.
//
//	generate <folder of the .proto files> <folder of the code> <file>…
package main

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/pluginpb"
)

// The package of the generated code, which the .proto files do not name.
const goPackage = "ottoscaler/clients/ottoscaler/v1;ottoscalerv1"

func main() {
	root, out, files := os.Args[1], os.Args[2], os.Args[3:]
	compiler := protocompile.Compiler{
		Resolver:       &protocompile.SourceResolver{ImportPaths: []string{root}},
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	parsed, err := compiler.Compile(context.Background(), files...)
	check(err)
	options := []string{"paths=source_relative"}
	request := &pluginpb.CodeGeneratorRequest{FileToGenerate: files}
	for _, file := range parsed {
		request.ProtoFile = append(request.ProtoFile, protodesc.ToFileDescriptorProto(file))
		options = append(options, fmt.Sprintf("M%s=%s", file.Path(), goPackage))
	}
	request.Parameter = proto.String(strings.Join(options, ","))
	for _, plugin := range []string{"protoc-gen-go", "protoc-gen-go-grpc"} {
		for _, file := range run(plugin, request).File {
			path := filepath.Join(out, file.GetName())
			check(os.MkdirAll(filepath.Dir(path), 0o755))
			check(os.WriteFile(path, []byte(file.GetContent()), 0o644))
		}
	}
}

func run(plugin string, request *pluginpb.CodeGeneratorRequest) *pluginpb.CodeGeneratorResponse {
	input, err := proto.Marshal(request)
	check(err)
	command := exec.Command("go", "tool", plugin)
	command.Stdin, command.Stderr = bytes.NewReader(input), os.Stderr
	output, err := command.Output()
	check(err)
	response := &pluginpb.CodeGeneratorResponse{}
	check(proto.Unmarshal(output, response))
	if response.Error != nil {
		log.Fatalf("%s: %s", plugin, response.GetError())
	}
	return response
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
