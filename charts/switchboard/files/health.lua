-- What Argo CD is to make of a Conversation: Healthy where what its spec asks for is in effect (open or closed), Degraded where that
-- takes a change of something else, Progressing until switchboard has looked at the spec as it is now.
--
-- Put it into the ConfigMap argocd-cm, under the key resource.customizations.health.switchboard.dev_Conversation.

local status = obj.status
if status == nil or status.conditions == nil or status.observedGeneration ~= obj.metadata.generation then
  return { status = "Progressing", message = "Waiting for controller" }
end

local conditions = {}
for _, condition in ipairs(status.conditions) do
  conditions[condition.type] = condition
end

local stalled, ready = conditions.Stalled, conditions.Ready
if stalled ~= nil and stalled.status == "True" then
  return { status = "Degraded", message = stalled.message }
end
if ready ~= nil and ready.status == "True" then
  return { status = "Healthy", message = ready.message }
end
return { status = "Progressing", message = ready ~= nil and ready.message or "Waiting for controller" }
