// What @a2a-js/sdk, unmodified, makes of an agent: streams, asks, gets. Arguments: the agent's address, key, binding, version.
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [url, key, binding, version, folder] = process.argv.slice(2);
const require = createRequire(`${folder}/`);
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const { ClientFactory, DefaultAgentCardResolver, JsonRpcTransportFactory, RestTransportFactory } = await load('@a2a-js/sdk/client');
const { Role } = await load('@a2a-js/sdk');

const fetchImpl = (input, init = {}) => {
  const headers = new Headers(init.headers);
  headers.set('Authorization', `Bearer ${key}`);
  return fetch(input, { ...init, headers });
};
const legacyCompat = { enabled: version === '0.3' };
const transports = [];
if (binding === 'GRPC') {
  const { GrpcTransportFactory } = await load('@a2a-js/sdk/client/grpc');
  const { credentials, InterceptingCall } = await load('@grpc/grpc-js');
  const withKey = (options, next) => new InterceptingCall(next(options), {
    start(metadata, listener, next) {
      metadata.set('authorization', `Bearer ${key}`);
      next(metadata, listener);
    },
  });
  transports.push(new GrpcTransportFactory({
    grpcChannelCredentials: credentials.createInsecure(), grpcCallOptions: { interceptors: [withKey] }, legacyCompat,
  }));
} else {
  const Factory = binding === 'JSONRPC' ? JsonRpcTransportFactory : RestTransportFactory;
  transports.push(new Factory({ fetchImpl, legacyCompat }));
}
const cardResolver = new DefaultAgentCardResolver({ fetchImpl });
const card = await cardResolver.resolve(`${url}/.well-known/agent-card.json`, '');
card.supportedInterfaces = card.supportedInterfaces.filter((i) => i.protocolVersion.startsWith(version) && i.protocolBinding === binding);
const client = await new ClientFactory({ transports, cardResolver }).createFromAgentCard(card);

const message = (text, taskId = '') => ({
  message: {
    messageId: crypto.randomUUID(), contextId: '', taskId, role: Role.ROLE_USER,
    parts: [{ content: { $case: 'text', value: text }, metadata: undefined, filename: '', mediaType: '' }],
    metadata: undefined, extensions: [], referenceTaskIds: [],
  },
  configuration: undefined, metadata: undefined, tenant: '',
});

const turn = async (text, taskId) => {
  const told = { states: [], words: [], questions: [] };
  for await (const { payload } of client.sendMessageStream(message(text, taskId))) {
    if (payload.$case === 'task') told.task = payload.value.id;
    if (payload.$case === 'statusUpdate') {
      told.states.push(payload.value.status.state);
      if (payload.value.status.message) told.questions.push(payload.value.status.message.parts[0].content.value);
    }
    if (payload.$case === 'artifactUpdate') told.words.push(payload.value.artifact.parts[0].content.value);
  }
  return told;
};

const first = await turn('a wall');
const second = await turn('red', first.task);
const third = await turn('3', first.task);
const task = await client.getTask({ id: first.task, historyLength: 10, tenant: '' });
console.log(JSON.stringify({ first, second, third, history: task.history.length, artifact: task.artifacts[0].parts[0].content.value }));
