// An otto-handler in NestJS that keeps each log entry once.
//
// Entries come again after a broken stream or a change of leader, with the same epoch
// and sequence. Per pod and restart these only grow, so what is not above the highest
// pair is a repeat: it is acknowledged, and not kept. A handler of several processes
// keeps the pairs where it keeps the lines, in one transaction.
import 'reflect-metadata';
import { appendFileSync } from 'node:fs';
import { ServerDuplexStream, status } from '@grpc/grpc-js';
import { Controller, Module } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { GrpcMethod, GrpcStreamCall, MicroserviceOptions, Transport } from '@nestjs/microservices';

interface WorkerLogEntry {
  workerId: string;
  message: string;
  metadata: Record<string, string>;
}

interface LogForwardResponse {
  status: 'ACK' | 'RETRY' | 'DROP';
  sequence: number;
}

const env = (name: string, fallback: string) => process.env[name] ?? fallback;
const record = env('RECORD', '/dev/stdout');
// For tests: every so many entries the stream breaks before the answer.
const breakEvery = Number(env('BREAK_EVERY', '0'));

@Controller()
class LogHandler {
  private readonly newest = new Map<string, [epoch: number, sequence: number]>();
  private entries = 0;

  @GrpcStreamCall('OttoHandlerLogService', 'ForwardWorkerLogs')
  forwardWorkerLogs(call: ServerDuplexStream<WorkerLogEntry, LogForwardResponse>) {
    call.on('data', (entry: WorkerLogEntry) => {
      this.take(entry);
      this.entries += 1;
      if (breakEvery > 0 && this.entries % breakEvery === 0) {
        call.removeAllListeners('data');
        call.emit('error', { code: status.UNAVAILABLE, details: 'broken on purpose' });
        return;
      }
      // The nth answer belongs to the nth entry.
      call.write({ status: 'ACK', sequence: Number(entry.metadata.sequence) });
    });
    call.on('end', () => call.end());
  }

  private take({ workerId, message, metadata }: WorkerLogEntry) {
    const key = `${metadata['pod-uid']}/${metadata.restart}`;
    const [epoch, sequence] = [Number(metadata.epoch), Number(metadata.sequence)];
    const [e, s] = this.newest.get(key) ?? [0, 0];
    if (epoch < e || (epoch === e && sequence <= s)) return;
    this.newest.set(key, [epoch, sequence]);
    appendFileSync(record, `${workerId} ${message}\n`);
  }

  @GrpcMethod('OttoHandlerLogService', 'NotifyWorkerStatus')
  notifyWorkerStatus() {
    return { status: 'RECEIVED', message: '' };
  }
}

@Module({ controllers: [LogHandler] })
class AppModule {}

async function main() {
  const app = await NestFactory.createMicroservice<MicroserviceOptions>(AppModule, {
    logger: ['warn', 'error'],
    transport: Transport.GRPC,
    options: {
      url: env('LISTEN', '0.0.0.0:8080'),
      package: 'ottoscaler.v1',
      protoPath: env('PROTO', 'log.proto'),
      loader: { enums: String, longs: Number },
    },
  });
  await app.listen();
  console.error('ready');
}

void main();
