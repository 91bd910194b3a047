-- Argo CD's health of a Conversation or a ProxyAddress: Healthy if its spec is in effect (open or closed), Degraded if another object must change first,
-- Progressing until switchboard has observed the current spec.
--
-- Put this file into the ConfigMap argocd-cm, under the keys resource.customizations.health.switchboard.dev_Conversation and
-- resource.customizations.health.switchboard.dev_ProxyAddress.

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
