// The registry that the broker's image is built into and pulled from; no passwords.

@description('Region.')
param location string

@description('Tags of every resource.')
param tags object

@description('Log Analytics workspace for diagnostics.')
param workspaceId string

@description('Object id of the broker\'s identity.')
param principalId string

@description('SKU.')
param skuName string

// https://learn.microsoft.com/azure/role-based-access-control/built-in-roles/containers
var acrPull = '7f951dda-4ed3-4680-a7ca-43fe172d538d'

// https://learn.microsoft.com/azure/templates/microsoft.containerregistry/2025-11-01/registries
resource registry 'Microsoft.ContainerRegistry/registries@2025-11-01' = {
  // checkov:skip=CKV_AZURE_139:images are pushed from developers' machines and CI; pushing and pulling want Entra, and nothing secret is in an image
  // checkov:skip=CKV_AZURE_163:scanning is Microsoft Defender's, switched on for a subscription and not for a registry
  // checkov:skip=CKV_AZURE_166:quarantine needs a Premium registry and a scanner that lets images out of it
  name: 'cr${uniqueString(resourceGroup().id)}'
  location: location
  tags: tags
  sku: {
    name: skuName
  }
  properties: {
    adminUserEnabled: false
  }
}

// https://learn.microsoft.com/azure/templates/microsoft.authorization/2022-04-01/roleassignments
resource pull 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(registry.id, principalId, acrPull)
  scope: registry
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', acrPull)
    principalId: principalId
    principalType: 'ServicePrincipal'
    description: 'The broker\'s image is pulled as the broker'
  }
}

// https://learn.microsoft.com/azure/templates/microsoft.insights/2021-05-01-preview/diagnosticsettings
resource diagnostics 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  name: 'to-workspace'
  scope: registry
  properties: {
    workspaceId: workspaceId
    logs: [
      {
        categoryGroup: 'audit'
        enabled: true
      }
    ]
    metrics: [
      {
        category: 'AllMetrics'
        enabled: true
      }
    ]
  }
}

@description('Name of the registry.')
output name string = registry.name

@description('Where images are pushed to.')
output loginServer string = registry.properties.loginServer
