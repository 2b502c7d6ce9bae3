// A client of Ottoscaler in grpc-js as it comes (CLIENT=grpc-js), or through NestJS
// (CLIENT=nest), from the .proto files and the published service config alone. What it does
// and prints: tests/clients/README.md.
import 'reflect-metadata';
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { ChannelCredentials, credentials, loadPackageDefinition, Metadata } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { ClientGrpcProxy, ClientProxyFactory, Transport } from '@nestjs/microservices';
import { lastValueFrom, Observable, takeWhile, toArray } from 'rxjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    servers: { type: 'string', default: '127.0.0.1:9090' },
    protos: { type: 'string', default: 'proto' },
    config: { type: 'string', default: 'proto/ottoscaler/v1/service_config.json' },
    ca: { type: 'string' },
    'server-name': { type: 'string' },
    'token-file': { type: 'string' },
    task: { type: 'string', default: 'js' },
    rate: { type: 'string', default: '5' },
  },
});

interface Calls {
  unary(service: string, method: string, request: object): Promise<any>;
  // The messages until one of type SYNCED, or until the end.
  stream(service: string, method: string, request: object): Promise<any[]>;
  close(): void;
}

// With a headless Service the target is dns:///<release>-replicas.<namespace>.svc:9090.
const target = `ipv4:${values.servers}`;
const protoPath = ['ottoscaler/v1/ottoscaler.proto', 'ottoscaler/v1/admin.proto'];
const loader = { enums: String, longs: Number, defaults: true, includeDirs: [values.protos] };
const channelOptions: Record<string, string> = {
  'grpc.service_config': readFileSync(values.config, 'utf8'),
};
if (values['server-name']) {
  channelOptions['grpc.ssl_target_name_override'] = values['server-name'];
  channelOptions['grpc.default_authority'] = values['server-name'];
}
const transport: ChannelCredentials = values.ca
  ? credentials.createSsl(readFileSync(values.ca))
  : credentials.createInsecure();

// The metadata of a call, with the token as it is in its file now. grpc-js reads
// waitForReady here and not from the service config.
function metadata(): Metadata {
  const metadata = new Metadata({ waitForReady: true });
  const file = values['token-file'];
  if (file) metadata.set('authorization', `Bearer ${readFileSync(file, 'utf8').trim()}`);
  return metadata;
}

const isSynced = (message: any) => message.type === 'SYNCED';

function grpcJs(): Calls {
  const { v1 } = (loadPackageDefinition(loadSync(protoPath, loader)) as any).ottoscaler;
  const clients: Record<string, any> = {};
  const client = (service: string) =>
    (clients[service] ??= new v1[service](target, transport, channelOptions));
  return {
    unary: (service, method, request) =>
      new Promise((resolve, reject) =>
        client(service)[method](request, metadata(), (error: unknown, response: unknown) =>
          error ? reject(error) : resolve(response),
        ),
      ),
    stream: (service, method, request) =>
      new Promise((resolve, reject) => {
        const messages: any[] = [];
        const call = client(service)[method](request, metadata());
        call.on('data', (message: any) => {
          messages.push(message);
          if (isSynced(message)) call.cancel();
        });
        call.on('end', () => resolve(messages));
        call.on('error', (error: Error) => (messages.some(isSynced) ? resolve(messages) : reject(error)));
      }),
    close: () => Object.values(clients).forEach((client) => client.close()),
  };
}

function nest(): Calls {
  const proxy = ClientProxyFactory.create({
    transport: Transport.GRPC,
    options: {
      url: target,
      package: 'ottoscaler.v1',
      protoPath,
      loader,
      credentials: transport,
      channelOptions,
    },
  }) as unknown as ClientGrpcProxy;
  const call = (service: string, method: string, request: object): Observable<any> =>
    (proxy.getService(service) as any)[method[0].toLowerCase() + method.slice(1)](request, metadata());
  return {
    unary: (service, method, request) => lastValueFrom(call(service, method, request)),
    stream: (service, method, request) =>
      lastValueFrom(
        call(service, method, request).pipe(takeWhile((m) => !isSynced(m), true), toArray()),
      ),
    close: () => proxy.close(),
  };
}

const workers = 'OttoscalerService';
const admin = 'OttoscalerAdminService';

const scale = (taskId: string, workerCount: number) => ({
  taskId,
  workerCount,
  repository: 'org/repo',
  commitSha: 'abc',
  // No node takes such a worker: it stays as it is.
  buildConfig: { OTTO_NODE_SELECTOR: 'kubernetes.io/arch=none' },
});

// Calls each method once.
async function methods(calls: Calls, task: string) {
  const ok = (method: string) => console.log('ok', method);
  await calls.unary(workers, 'ScaleUp', scale(task, 1));
  ok('ScaleUp');
  await pages(calls, task);
  ok('GetWorkerStatus');
  const { tasks } = await calls.unary(workers, 'ListTasks', { repository: 'org/repo' });
  if (tasks.length === 0) throw new Error('ListTasks returned no task');
  ok('ListTasks');
  for (const [method, request] of [['WatchWorkers', { taskId: task }], ['WatchTasks', {}]] as const) {
    const events = await calls.stream(workers, method, request);
    if (!isSynced(events.at(-1))) throw new Error(`${method} ended early`);
    ok(method);
  }
  await calls.stream(admin, 'ShowLogs', { taskId: task });
  ok('ShowLogs');
  await calls.unary(admin, 'Pause', { reason: 'a test' });
  ok('Pause');
  await calls.unary(admin, 'Resume', {});
  ok('Resume');
  await calls.unary(workers, 'ScaleDown', scale(task, 0));
  ok('ScaleDown');
}

// Prints all workers, page by page.
async function pages(calls: Calls, taskId: string) {
  let [pageToken, count] = ['', 0];
  do {
    const page = await calls.unary(workers, 'GetWorkerStatus', { taskId, pageToken });
    for (const { podName } of page.workers) console.log('pod', podName);
    pageToken = page.nextPageToken;
    count += 1;
  } while (pageToken);
  console.log('pages', count);
}

async function upAndDown(calls: Calls, task: string, down: boolean) {
  try {
    await calls.unary(workers, 'ScaleUp', scale(task, 1));
  } catch (error) {
    return console.log('failed ScaleUp', task, String(error));
  }
  console.log('accepted', task);
  if (!down) return;
  await calls
    .unary(workers, 'ScaleDown', scale(task, 0))
    .catch((error) => console.log('failed ScaleDown', task, String(error)));
}

// Scales tasks up at the rate, and every fourth down again, until the standard input ends.
async function scaleUntilEnd(calls: Calls, prefix: string) {
  const underWay = new Set<Promise<void>>();
  let n = 0;
  const timer = setInterval(() => {
    const task = `${prefix}-${n}`;
    const call = upAndDown(calls, task, n % 4 === 0).finally(() => underWay.delete(call));
    n += 1;
    underWay.add(call);
  }, 1_000 / Number(values.rate));
  process.stdin.resume();
  await new Promise((resolve) => process.stdin.once('end', resolve));
  clearInterval(timer);
  await Promise.all(underWay);
  console.log('done');
}

async function main() {
  const calls = process.env.CLIENT === 'nest' ? nest() : grpcJs();
  const mode = { methods, pages, scale: scaleUntilEnd }[positionals[0] ?? ''];
  if (!mode) throw new Error(`no such mode: ${positionals[0]}`);
  await mode(calls, values.task);
  calls.close();
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
