// The official @a2a-js/sdk talks to an agent of the cluster. Arguments: the agent's address and a key.
import { ClientFactory, DefaultAgentCardResolver, JsonRpcTransportFactory } from '@a2a-js/sdk/client';
import { Role, TaskState } from '@a2a-js/sdk';

const [url, key] = process.argv.slice(2);
const fetchImpl = (input, init = {}) => {
  const headers = new Headers(init.headers);
  headers.set('Authorization', `Bearer ${key}`);
  return fetch(input, { ...init, headers });
};
const cardResolver = new DefaultAgentCardResolver({ fetchImpl });
const card = await cardResolver.resolve(`${url}/.well-known/agent-card.json`, '');
const client = await new ClientFactory({ transports: [new JsonRpcTransportFactory({ fetchImpl })], cardResolver }).createFromAgentCard(card);
console.log(`${card.name}: ${card.description}`);

// Sends one message and reads what comes until the task ends or asks something.
async function say(text, taskId = '') {
  const said = { taskId, state: TaskState.TASK_STATE_UNSPECIFIED, text: '' };
  const message = {
    messageId: crypto.randomUUID(), contextId: '', taskId, role: Role.ROLE_USER,
    parts: [{ content: { $case: 'text', value: text }, metadata: undefined, filename: '', mediaType: '' }],
    metadata: undefined, extensions: [], referenceTaskIds: [],
  };
  for await (const { payload } of client.sendMessageStream({ message, configuration: undefined, metadata: undefined, tenant: '' })) {
    if (payload.$case === 'task') said.taskId = payload.value.id;
    const parts = { statusUpdate: (v) => v.status.message?.parts, artifactUpdate: (v) => v.artifact.parts }[payload.$case]?.(payload.value);
    // A question has its options as data behind the words.
    for (const { content } of parts ?? []) if (content.$case === 'text') said.text += content.value;
    if (payload.$case === 'statusUpdate') said.state = payload.value.status.state;
  }
  return said;
}

const question = await say('wall');
console.log(`wall > ${question.text}`);
// A message with the task's id is the answer to its question.
const answer = await say('blue', question.taskId);
console.log(`blue > ${answer.text}`);
if (answer.state !== TaskState.TASK_STATE_COMPLETED || answer.text.trim() !== 'the wall is blue') process.exit(1);
